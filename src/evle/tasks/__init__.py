"""Tasks: everything between samples and scores, one file per task."""

from evle.tasks.nlvr2 import NLVR2Task
from evle.tasks.pretraining import PreTrainingTask
from evle.tasks.retrieval import RetrievalTask
from evle.tasks.swaps import SwapsTask
from evle.tasks.task import Task
from evle.tasks.vcr import VCRQ2ATask, VCRQA2RTask
from evle.tasks.vqa import VQATask

TASKS: dict[str, type[Task]] = {
    "pretraining": PreTrainingTask,
    "retrieval": RetrievalTask,
    "vqa": VQATask,
    "nlvr2": NLVR2Task,
    "swaps": SwapsTask,
    "vcr-q2a": VCRQ2ATask,
    "vcr-qa2r": VCRQA2RTask,
}
