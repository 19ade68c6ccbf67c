"""The settings of model, tools and worker in the environment, and faults in them."""

import os

from temporalio.common import VersioningBehavior, WorkerDeploymentVersion
from temporalio.worker import WorkerDeploymentConfig

import open_meteo
from app.output import UserError, one_line
from options import gateway
from options.http import check_url


def check_environment() -> None:
    """Find a setting that would fail every model or tool call, before a run is started. UserError: there is one."""
    try:
        gateway.check_environment()
        check_url("OPEN_METEO_GEOCODING_URL", open_meteo.geocoding_url())
        check_url("OPEN_METEO_FORECAST_URL", open_meteo.forecast_url())
    except ValueError as error:
        raise UserError(one_line(error)) from error


def build_of_worker() -> WorkerDeploymentConfig:
    """The version of a worker. With `TEMPORAL_WORKER_BUILD_ID`, a run stays with the build that it began with."""
    build_id = os.environ.get("TEMPORAL_WORKER_BUILD_ID")
    return WorkerDeploymentConfig(
        # Without a build id the worker makes one of the code of every module there is, which takes a second.
        version=WorkerDeploymentVersion("durable-agent", build_id or "1"),
        use_worker_versioning=bool(build_id),
        default_versioning_behavior=VersioningBehavior.PINNED if build_id else VersioningBehavior.UNSPECIFIED,
    )
