/* A clock that jumps: every reading of the time of day in a process that has this preloaded is off by
   JAXVL_CHAOS_SECONDS, from when the file JAXVL_CHAOS_CLOCK is there. Clocks that only measure go on
   as they do (libfaketime 0.9.10 cannot leave them alone without breaking Python's sleep). */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static long seconds(void) {
  const char *file = getenv("JAXVL_CHAOS_CLOCK");
  const char *jump = getenv("JAXVL_CHAOS_SECONDS");
  return file && jump && access(file, F_OK) == 0 ? atol(jump) : 0;
}

int clock_gettime(clockid_t clock, struct timespec *now) {
  static int (*real)(clockid_t, struct timespec *);
  if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
  int status = real(clock, now);
  if (status == 0 && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
    now->tv_sec += seconds();
  return status;
}

int gettimeofday(struct timeval *now, void *zone) {
  struct timespec found;
  (void)zone;
  int status = clock_gettime(CLOCK_REALTIME, &found);
  now->tv_sec = found.tv_sec;
  now->tv_usec = found.tv_nsec / 1000;
  return status;
}

time_t time(time_t *now) {
  struct timespec found;
  clock_gettime(CLOCK_REALTIME, &found);
  if (now) *now = found.tv_sec;
  return found.tv_sec;
}
