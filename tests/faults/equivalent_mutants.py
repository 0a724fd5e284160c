"Mutants that no test can kill, with the reason; `mutants.py` reads the table."
EQUIVALENT = {}
