# Raised with every change of what the solvers answer to the same measurements. It is part of the code versions of
# assets, as a training begins with the site biases that are fitted here, and an evaluation compares with all solvers.
SOLVERS_VERSION = 1
