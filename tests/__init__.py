"""A package of its own: a library of the lock brings another `tests`, which would be found before a mere folder."""
