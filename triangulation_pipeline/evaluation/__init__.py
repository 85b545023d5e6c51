# Raised with every change of the numbers or verdicts that an evaluation gives for the same predictions: part of assets'
# code versions, so that they are out of date. Here, where it is read without the room's libraries.
EVALUATION_VERSION = 2
