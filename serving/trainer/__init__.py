"""Training on Ray Train: the loop of ``terrafine.training``, on several workers at once.

Nothing is imported here: Ray's own processes import single modules of this room, and need neither
torch nor the stages for most of them.
"""
