"""`python -m proxytune.cli` is the `proxytune` command."""

import sys

from proxytune.cli import main

sys.exit(main())
