"""The servers of a run: carries out what the planner decides, and keeps account of who has what."""
