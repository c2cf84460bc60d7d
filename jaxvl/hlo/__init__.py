"""Compiled programs, read: what they move over the network and through memory."""

from jaxvl.hlo.collectives import Collective as Collective
from jaxvl.hlo.collectives import collectives as collectives
from jaxvl.hlo.collectives import counted as counted
from jaxvl.hlo.groups import axes_of as axes_of
from jaxvl.hlo.live import Live as Live
from jaxvl.hlo.live import Peak as Peak
from jaxvl.hlo.live import peak as peak
from jaxvl.hlo.program import Program as Program
from jaxvl.hlo.program import read as read
from jaxvl.hlo.traffic import traffic as traffic
