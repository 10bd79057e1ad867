// The threads of the OpenMP runtime that torch computes with, borrowed.
//
// Two pools in one process get into each other's way: OpenMP's idle threads look for work for milliseconds after every
// operation of torch, on the cores that ours would need. So work is given to those very threads where there are any.

#pragma once

#include <functional>

#include "pool.h"

namespace moesaic {

// Runs work(thread, team) on `threads` threads of torch's OpenMP runtime and returns true when all are done; returns
// false and does nothing where it cannot: torch is not loaded or was built without OpenMP, it is set to fewer threads, or
// this process was forked from one in which they ran (they do not survive that).
bool run_on_openmp(int threads, const std::function<void(int, Team&)>& work);

}  // namespace moesaic
