"""Members of a family, what they come from, and the one step that runs them."""

from proxytune.models.ensemble import Ensemble, Inputs
from proxytune.models.files import identity
from proxytune.models.loading import check, load
from proxytune.models.member import Member, Reading
from proxytune.models.sources import FamilySpec, Source

__all__ = ["Ensemble", "FamilySpec", "Inputs", "Member", "Reading", "Source", "check", "identity", "load"]
