"""A workflow's dossier: its technical file, made of declarations and records alone.

Owns the order of its sections. What was not declared or recorded is said to be so; nothing is guessed. Pure: the same
material gives the same dossier. `embedded/` gathers the material, `dossier_pages` writes the dossier.
"""

from __future__ import annotations

from drivetrain.promotion import dossier_declared as declared
from drivetrain.promotion import dossier_recorded as recorded
from drivetrain.promotion.dossier_gaps import gaps_of
from drivetrain.promotion.dossier_material import Dossier, Material, Section, day


def make_dossier(material: Material) -> Dossier:
    """The dossier of one workflow."""
    snapshot, last = material.snapshot, material.records[-1] if material.records else None
    gaps = gaps_of(material)
    return Dossier(
        workflow=material.workflow,
        project=snapshot.name,
        environment=snapshot.environment,
        made=day(material.now_ns),
        snapshot=snapshot.hash,
        control_seq=last.seq if last is not None else 0,
        control_head=last.hash if last is not None else "",
        sections=(
            declared.purpose(material),
            declared.contract(material),
            declared.route(material),
            recorded.versions(material),
            declared.data(material),
            recorded.measured(material),
            recorded.in_use(material),
            declared.oversight(material),
            declared.limits(material),
            declared.retention(material),
            recorded.changes(material),
            recorded.incidents(material),
            Section(
                title="Known gaps",
                notes=gaps or ("None of the gaps that are looked for was found.",),
            ),
        ),
        gaps=gaps,
    )
