"""The joint network, its targets and its losses."""
