#pragma once

#include <vector>

#include "masks/node.h"

namespace fa2::masks {

NodePtr negation(NodePtr operand);

// Of at least one operand.
NodePtr conjunction(std::vector<NodePtr> operands);
NodePtr disjunction(std::vector<NodePtr> operands);

}  // namespace fa2::masks
