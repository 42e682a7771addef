"""`python -m jaxdecode`: the command line."""

import sys

from jaxdecode.cli.main import main

sys.exit(main())
