"""The stages of the recipe, one folder per stage."""
