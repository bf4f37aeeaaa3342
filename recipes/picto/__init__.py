"""Picto: captioned pictures made from openly licensed emoji, icons, avatars and clip art."""
