"""A world to learn in: traffic, sensor models, labels, recorded as clips or rosbags."""
