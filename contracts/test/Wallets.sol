// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {IERC1271} from "@openzeppelin/contracts/interfaces/IERC1271.sol";
import {ECDSA} from "@openzeppelin/contracts/utils/cryptography/ECDSA.sol";

bytes4 constant YES = IERC1271.isValidSignature.selector;
bytes4 constant NO = 0xffffffff;

/// @notice An honest wallet: its owner signs for it.
contract Wallet1271 is IERC1271 {
    address public immutable owner;

    constructor(address owner_) {
        owner = owner_;
    }

    function isValidSignature(bytes32 hash, bytes memory signature) external view returns (bytes4) {
        (address signer, ECDSA.RecoverError failure,) = ECDSA.tryRecover(hash, signature);
        return failure == ECDSA.RecoverError.NoError && signer == owner ? YES : NO;
    }
}

/// @notice Disowns every signature.
contract LyingWallet is IERC1271 {
    function isValidSignature(bytes32, bytes memory) external pure returns (bytes4) {
        return NO;
    }
}

/// @notice Burns all the gas it is given.
contract GasBurner is IERC1271 {
    function isValidSignature(bytes32, bytes memory) external pure returns (bytes4) {
        assembly ("memory-safe") {
            invalid()
        }
    }
}

/// @notice Says yes, in a megabyte (which takes 2.2 million gas).
contract BombWallet is IERC1271 {
    function isValidSignature(bytes32, bytes memory) external pure returns (bytes4) {
        bytes4 yes = YES;
        assembly {
            mstore(0, yes)
            return(0, 0x100000)
        }
    }
}

/// @notice Says what it was told to say last; at first, no.
contract FickleWallet is IERC1271 {
    bool public answer;

    function set(bool answer_) external {
        answer = answer_;
    }

    function isValidSignature(bytes32, bytes memory) external view returns (bytes4) {
        return answer ? YES : NO;
    }
}
