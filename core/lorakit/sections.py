"""What every section of a run's settings is, and values that several have."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Target = Annotated[str, Field(min_length=1)]
Name = Annotated[str, Field(min_length=1, max_length=100, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
Input = Annotated[str, Field(pattern=r"^[A-Za-z0-9_]+$")]
Every = Annotated[int, Field(ge=0)] | Literal["epoch"]


class Section(BaseModel):
    """A frozen group of settings in which an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, defer_build=True)
