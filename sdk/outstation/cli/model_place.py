"""How a repository is named on the command line of ``outstation model``."""

from __future__ import annotations

from typing import Annotated

import typer

_WHERE = "A folder, s3://BUCKET/PREFIX or az://CONTAINER/PREFIX; https:// where it is only read."
RepositoryPlace = Annotated[str, typer.Argument(metavar="REPO", help=_WHERE, show_default=False)]
RepositoryOption = Annotated[str, typer.Option("--repository", metavar="REPO", help=_WHERE)]
