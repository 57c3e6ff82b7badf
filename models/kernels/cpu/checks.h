// Whether a program can be run at all. What passes reads and writes inside of its values, whatever
// the caller handed over; pointers to weights are trusted to reach as far as the step says.
#pragma once
#include <stdint.h>

#include <exception>
#include <string>

#include "abi.h"

namespace bitpress {

// Why a program is not made: a bp_status and a sentence.
class Refusal : public std::exception {
 public:
  Refusal(int32_t status, std::string sentence) : status(status), sentence(std::move(sentence)) {}
  const char* what() const noexcept override { return sentence.c_str(); }

  const int32_t status;
  const std::string sentence;
};

// Throws Refusal.
void check_program(const bp_program_spec& spec);

// A product apart from its pointers and from what it writes, for measuring it. `number` is that of
// the step, for the sentence. Throws Refusal.
void check_product(const bp_step& step, const bp_value& in0, int64_t number);
void check_value(const bp_value& value, int64_t number);

}  // namespace bitpress
