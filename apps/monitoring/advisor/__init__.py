"""What hardware a model needs, and what to change next. Figures and formulas; nothing here changes anything."""
