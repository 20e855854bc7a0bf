"""Options and plugins; fixtures live in `fix_*.py`, by subject."""

import os
import sys
from pathlib import Path

# Before anything of LangChain is imported: no test is influenced by, or reports to, the developer's surroundings.
for _name in [name for name in os.environ if name == "DATABASE_URL" or name.startswith(("HOLDFAST_", "PG"))]:
    if _name != "HOLDFAST_TEST_DSN":
        del os.environ[_name]
# A process that a test starts would compile all that it imports anew, for a second and more.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
os.environ["LANGSMITH_TRACING"] = "false"
os.environ["LANGCHAIN_TRACING_V2"] = "false"

sys.path.insert(0, str(Path(__file__).parent))

pytest_plugins = ["fix_database", "fix_proxy"]
