#pragma once

// The registers of a CTA's threads, which setmaxnreg moves between warps.

namespace emu {

class RegisterPool {
 public:
  // A CTA of so many threads starts: each has as many as fit.
  void open(int threads);
  int of_thread() const { return of_thread_; }

  // For `threads` that hold `held` each and want to hold `wanted`; false where too few are free.
  bool exchange(int threads, int held, int wanted);

 private:
  int of_thread_ = 0;
  int free_ = 0;
};

}  // namespace emu
