"""The life of a run: begun, opened, checked, saved, resumed, stopped."""
