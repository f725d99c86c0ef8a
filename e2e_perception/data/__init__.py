"""From rosbags to clips: reading and writing bags, clips on disk, the training dataset."""
