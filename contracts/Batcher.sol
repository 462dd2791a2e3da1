// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

/// @title Many calls in one transaction, each with a gas limit of its own.
/// @notice It has no owner, no state and no funds; anyone may call it with anything. It does not judge an answer: a
/// call that did not revert has passed, also when it returned `false` or there was no code at the target.
contract Batcher {
    struct Call {
        address target;
        uint256 gasLimit;
        bytes data;
    }

    struct Result {
        bool tried;
        bool success;
        uint256 gasUsed;
        bytes data; // the first 256 bytes at most
    }

    /// @param tried How many calls were reached; the others had too little gas left and were not started.
    /// @param passed Bit i is set when call i succeeded.
    event Executed(uint256 tried, uint256 passed);

    error Reorganised();
    error TooManyCalls();

    uint256 private constant MAX_CALLS = 256; // one bit of `passed` for each
    uint256 private constant MAX_DATA = 256;

    /// @dev Kept back when a call starts: reaching a cold target (twice, if it delegates) before, the event after it.
    uint256 private constant RESERVE = 10_000;
    /// @dev Kept back for each result of a simulation: storing and encoding it.
    uint256 private constant RESULT_RESERVE = 3_000;

    /// @notice Makes every call on `target` with exactly `gasEach`, in order; stops where the gas left is too little.
    function execute(address target, uint256 gasEach, bytes[] calldata calls) external {
        _execute(target, gasEach, calls);
    }

    /// @notice The same, but only on a chain that has this block among its last 256.
    function executeOn(uint256 blockNumber, bytes32 blockHash, address target, uint256 gasEach, bytes[] calldata calls)
        external
    {
        require(blockHash != 0 && blockhash(blockNumber) == blockHash, Reorganised());
        _execute(target, gasEach, calls);
    }

    /// @notice For `eth_call`: what each call would do, one after the other, and at which block.
    function simulate(Call[] calldata calls) external returns (uint256 blockNumber, Result[] memory results) {
        results = new Result[](calls.length);
        uint256 reserve = RESERVE + RESULT_RESERVE * calls.length;
        for (uint256 i = 0; i < calls.length; ++i) {
            Call calldata call_ = calls[i];
            if (!_enough(call_.gasLimit, reserve, call_.data.length)) break;
            results[i] = _try(call_.target, call_.gasLimit, call_.data);
        }
        return (block.number, results);
    }

    function codeSize(address account) external view returns (uint256) {
        return account.code.length;
    }

    function _execute(address target, uint256 gasEach, bytes[] calldata calls) private {
        require(calls.length <= MAX_CALLS, TooManyCalls());
        uint256 tried = 0;
        uint256 passed = 0;
        for (; tried < calls.length; ++tried) {
            bytes calldata data = calls[tried];
            if (!_enough(gasEach, RESERVE, data.length)) break;
            assembly ("memory-safe") {
                let buffer := mload(0x40)
                calldatacopy(buffer, data.offset, data.length)
                passed := or(passed, shl(tried, call(gasEach, target, 0, buffer, data.length, 0, 0)))
            }
        }
        emit Executed(tried, passed);
    }

    function _try(address target, uint256 gasLimit, bytes calldata input) private returns (Result memory result) {
        bool success;
        uint256 gasUsed;
        bytes memory output;
        assembly ("memory-safe") {
            output := mload(0x40)
            calldatacopy(output, input.offset, input.length)
            gasUsed := gas()
            success := call(gasLimit, target, 0, output, input.length, 0, 0)
            gasUsed := sub(gasUsed, gas())
            let size := returndatasize()
            if gt(size, MAX_DATA) { size := MAX_DATA }
            mstore(output, size)
            returndatacopy(add(output, 0x20), 0, size)
            mstore(0x40, add(output, add(0x20, MAX_DATA)))
        }
        return Result(true, success, gasUsed, output);
    }

    /// @dev Of the gas that is left a call can be given 63/64, and gets less than its limit without a word when
    /// that is too little. One unit for each byte of the call is more than copying it costs.
    function _enough(uint256 limit, uint256 reserve, uint256 length) private view returns (bool) {
        unchecked {
            uint256 left = gasleft();
            reserve += length;
            return left > reserve && (left - reserve) * 63 / 64 >= limit;
        }
    }
}
