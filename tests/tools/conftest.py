import sys
from pathlib import Path

# As Python does for a script of that folder; it goes to processes started from here, too.
sys.path.insert(0, str(Path(__file__).parent.parent.parent / "tools"))
