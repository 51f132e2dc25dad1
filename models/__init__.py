"""What is true: the shared schema, and the statements that keep it true.

The names below are the seed's import list and the tables that we add.
"""

from models.accounts import CreditAccount, CreditTransaction
from models.base import Base
from models.images import Failure, Image
from models.jobs import CrawlJob, JobChunk, Project
from models.leadership import Leadership
from models.notifications import Notification, NotificationPreference
from models.pages import Page
from models.people import ActivityLog, APIKey, Profile, UsageMetric
from models.rules import declare_rules
from models.seen import SeenKey
from models.workers import Worker

declare_rules()

__all__ = [
    "APIKey",
    "ActivityLog",
    "Base",
    "CrawlJob",
    "CreditAccount",
    "CreditTransaction",
    "Failure",
    "Image",
    "JobChunk",
    "Leadership",
    "Notification",
    "NotificationPreference",
    "Page",
    "Profile",
    "Project",
    "SeenKey",
    "UsageMetric",
    "Worker",
]
