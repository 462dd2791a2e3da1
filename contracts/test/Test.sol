// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

/// @dev Those of Forge's cheatcodes that the tests here use.
interface Vm {
    struct Log {
        bytes32[] topics;
        bytes data;
        address emitter;
    }

    function addr(uint256 key) external pure returns (address);
    function chainId(uint256 id) external;
    function cool(address account) external;
    function deal(address account, uint256 balance) external;
    function etch(address account, bytes calldata code) external;
    function getRecordedLogs() external returns (Log[] memory);
    function prank(address sender) external;
    function recordLogs() external;
    function roll(uint256 number) external;
    function setNonce(address account, uint64 nonce) external;
    function sign(uint256 key, bytes32 digest) external pure returns (uint8 v, bytes32 r, bytes32 s);
    function warp(uint256 timestamp) external;
}

abstract contract Test {
    Vm internal constant VM = Vm(address(uint160(uint256(keccak256("hevm cheat code")))));

    event log_named_uint(string key, uint256 value); // Forge prints it with -vv

    error Unequal(uint256 left, uint256 right);
    error UnequalBytes(bytes left, bytes right);

    function same(uint256 left, uint256 right) internal pure {
        require(left == right, Unequal(left, right));
    }

    function same(bytes memory left, bytes memory right) internal pure {
        require(keccak256(left) == keccak256(right), UnequalBytes(left, right));
    }

    function reason(string memory text) internal pure returns (bytes memory) {
        return abi.encodeWithSignature("Error(string)", text);
    }
}
