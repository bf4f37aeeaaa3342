"""How good a model is, in figures: functions of pictures and of features, which know neither files nor flags."""
