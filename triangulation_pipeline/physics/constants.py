"""Constants shared by the physics room."""

SPEED_OF_LIGHT_M_PER_NS = 0.299792458
MEAN_EARTH_RADIUS_M = 6371008.8
