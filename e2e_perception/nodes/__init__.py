"""The robot's nodes: thin adapters between ROS 2 and the pipeline."""
