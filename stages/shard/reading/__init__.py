"""How files and sets become rows: each kind in a file of its own."""
