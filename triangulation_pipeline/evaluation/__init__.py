# Raised with every change of the numbers or verdicts that an evaluation gives for the same predictions. It is part of
# the code versions of assets, which are then out of date. It stands here, where it is read without the libraries.
EVALUATION_VERSION = 3
