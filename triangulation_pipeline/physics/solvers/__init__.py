# Raised with every change of what the solvers answer to the same measurements. It is part of the code versions of
# assets, as an evaluation compares with all solvers.
SOLVERS_VERSION = 2
