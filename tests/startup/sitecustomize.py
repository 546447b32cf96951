"""What Python does at the start of every process of a test run; tests/conftest.py says where it is.

Python's garbage collector looks at all objects again and again while a framework is imported, and
finds little. With the usual threshold of 700 objects it takes a fifth of the import of TensorFlow,
and a sixth of that of torch.compile. At the end of a process it looks at all of them once more,
which takes a second with TensorFlow. Frozen objects are left to the system.
"""

import atexit
import gc

gc.set_threshold(50_000)
atexit.register(gc.freeze)
