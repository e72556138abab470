"""The public names of the accuracies and their intervals, from `taet.statistics`."""

from taet.statistics import accuracy as accuracy
from taet.statistics import balanced_accuracy as balanced_accuracy
from taet.statistics import balanced_interval as balanced_interval
from taet.statistics import group_accuracy as group_accuracy
from taet.statistics import per_class_accuracy as per_class_accuracy
from taet.statistics import wilson_interval as wilson_interval
