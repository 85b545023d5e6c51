"""Constants shared by the physics room."""

SPEED_OF_LIGHT_M_PER_NS = 0.299792458
