"""VectorDBBench's own command line, with vecdb as one more database: `python run.py vecdb --path FOLDER …` (see README.md).

Databases are members of an enum there, so a database from outside is added to it before anything else is imported. Processes that
the runner spawns import this file again, and so know the member as well.
"""

import os
from typing import Annotated, Unpack

import click
from vectordb_bench.backend.clients import DB


def register(name, value, parts):
    """Adds a member to DB. parts: what the attributes of a member give: name of the attribute -> function without arguments."""
    member = object.__new__(DB)
    member._name_, member._value_, member.__objclass__, member._sort_order_ = name, value, DB, len(DB)
    DB._member_names_.append(name)
    DB._member_map_[name] = DB._value2member_map_[value] = member
    for attribute in ("init_cls", "config_cls"):
        theirs = DB.__dict__[attribute].fget
        setattr(DB, attribute, property(lambda self, a=attribute, t=theirs: parts[a]() if self is member else t(self)))
    theirs = DB.case_config_cls
    DB.case_config_cls = lambda self, index_type=None: (
        parts["case_config_cls"]() if self is member else theirs(self, index_type)
    )
    return member


def part(name):
    """Imported when it is asked for: vecdb loads nothing in a process that only draws figures."""

    def imported():
        import client

        return getattr(client, name)

    return imported


VECDB = register(
    "VecDB", "VecDB", {"init_cls": part("VecDB"), "config_cls": part("VecDBConfig"), "case_config_cls": part("VecDBCaseConfig")}
)

from vectordb_bench.cli.cli import CommonTypedDict, cli, click_parameter_decorators_from_typed_dict, run  # noqa: E402


class VecDBTypedDict(CommonTypedDict):
    path: Annotated[str, click.option("--path", required=True, help="Folder of the database")]
    recall: Annotated[float, click.option("--recall", default=0.95, show_default=True, help="Recall that searches ask for")]
    index: Annotated[str, click.option("--index", default="hnsw", show_default=True, help="hnsw, flat or auto")]


@cli.command(name="vecdb")
@click_parameter_decorators_from_typed_dict(VecDBTypedDict)
def vecdb_command(**parameters: Unpack[VecDBTypedDict]):
    from client import VecDBCaseConfig, VecDBConfig

    run(
        db=VECDB,
        db_config=VecDBConfig(db_label=parameters["db_label"], path=os.path.abspath(parameters["path"])),
        db_case_config=VecDBCaseConfig(index=parameters["index"], recall=parameters["recall"]),
        **parameters,
    )


if __name__ == "__main__":
    cli()
