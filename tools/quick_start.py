"""Print the Python code of the section "Quick start", so that a test can run it.

    python tools/quick_start.py README.md
"""
import re
import sys
from pathlib import Path

section = re.search(r'^## Quick start\n(.*?)^## ', Path(sys.argv[1]).read_text(encoding='utf-8'),
                    flags=re.M | re.S).group(1)
print('\n'.join(re.findall(r'^```python\n(.*?)^```', section, flags=re.M | re.S)))
