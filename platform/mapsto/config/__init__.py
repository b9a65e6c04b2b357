"""The recipe: one YAML file, a section per stage. `schema` says what it may hold, `load` reads it."""
