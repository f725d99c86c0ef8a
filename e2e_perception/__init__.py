"""One jointly trained network for detection, tracking, prediction and planning, on ROS 2.

`extend_path` joins this source tree with the message modules that CMake generates into the
install space, so `e2e_perception.msg` resolves after `colcon build` and is simply absent
without ROS.
"""

import pkgutil

__path__ = pkgutil.extend_path(__path__, __name__)

__version__ = "0.1.0"
