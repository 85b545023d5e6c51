"""Constants shared by the physics room."""

SPEED_OF_LIGHT_M_PER_NS = 0.299792458
# Samples with a lower GDOP have good geometry, unless a training sets another limit.
GOOD_GDOP = 5.0
