// What the CPU family asks of OpenMP, in place of libgomp, which ThreadSanitizer does not see
// into: threads that are started for each parallel region and joined at its end, and loops whose
// chunks are handed out under a mutex. The names are those that GCC calls.

#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

namespace {

// A loop that is shared by the threads of a region.
struct Loop {
  long next, end, increment, chunk;
  int left = 0;  // threads that are through with it
};

struct Team {
  explicit Team(int size) : size(size) {}

  int const size;
  std::mutex mutex;
  std::condition_variable all_left;
  std::vector<Loop> loops;  // in the order in which threads come to them
};

struct Member {
  Team* team = nullptr;
  int number = 0;
  size_t loops = 0;  // that this thread has come to
};

thread_local Member self;

bool take(Loop& loop, long* begin, long* end) {
  bool const up = loop.increment > 0;
  if (up ? loop.next >= loop.end : loop.next <= loop.end) return false;
  *begin = loop.next;
  long const after = loop.next + loop.chunk * loop.increment;
  *end = (up ? after < loop.end : after > loop.end) ? after : loop.end;
  loop.next = *end;
  return true;
}

void work(Team& team, int number, void (*function)(void*), void* data) {
  Member const outer = self;
  self = {.team = &team, .number = number};
  function(data);
  self = outer;
}

}  // namespace

extern "C" {

void GOMP_parallel(void (*function)(void*), void* data, unsigned num_threads, unsigned) {
  Team team(num_threads == 0 ? 1 : static_cast<int>(num_threads));
  std::vector<std::thread> others;
  for (int i = 1; i < team.size; ++i) {
    others.emplace_back([&team, i, function, data] { work(team, i, function, data); });
  }
  work(team, 0, function, data);
  for (std::thread& other : others) other.join();
}

bool GOMP_loop_nonmonotonic_dynamic_next(long* begin, long* end) {
  std::lock_guard const lock(self.team->mutex);
  return take(self.team->loops[self.loops - 1], begin, end);
}

bool GOMP_loop_nonmonotonic_dynamic_start(long start, long stop, long increment, long chunk,
                                          long* begin, long* end) {
  {
    std::lock_guard const lock(self.team->mutex);
    if (self.team->loops.size() == self.loops) {
      self.team->loops.push_back(
          {.next = start, .end = stop, .increment = increment, .chunk = chunk});
    }
    ++self.loops;
  }
  return GOMP_loop_nonmonotonic_dynamic_next(begin, end);
}

// All threads wait for each other.
void GOMP_loop_end() {
  Team& team = *self.team;
  std::unique_lock lock(team.mutex);
  size_t const at = self.loops - 1;
  if (++team.loops[at].left == team.size) team.all_left.notify_all();
  team.all_left.wait(lock, [&] { return team.loops[at].left == team.size; });
}

int omp_get_num_threads() { return self.team == nullptr ? 1 : self.team->size; }
int omp_get_thread_num() { return self.number; }

}  // extern "C"
