from hypothesis import strategies as st

ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=60)  # lone surrogates too
