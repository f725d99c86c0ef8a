"""The robot side without ROS: frame assembly, preprocessing, tracking, planning, safety."""
