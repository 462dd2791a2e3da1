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

/// @notice Behaves like another wallet, and like yet another one the moment it is told so.
contract Turncoat is IERC1271 {
    IERC1271 public model;

    function become(IERC1271 model_) external {
        model = model_;
    }

    function isValidSignature(bytes32 hash, bytes memory signature) external view returns (bytes4) {
        return model.isValidSignature(hash, signature);
    }
}

/// @notice Says yes to whatever is only simulated, and burns the gas of a real transaction.
contract SimulationWallet is IERC1271 {
    function isValidSignature(bytes32, bytes memory) external view returns (bytes4) {
        if (tx.origin == address(0)) return YES;
        assembly ("memory-safe") {
            invalid()
        }
    }
}

/// @notice Disowns every signature, and makes a planned call when it is asked by a call that may change state.
contract MeddlingWallet {
    address private target;
    bytes private deed;

    function plan(address target_, bytes calldata deed_) external {
        (target, deed) = (target_, deed_);
    }

    function isValidSignature(bytes32, bytes memory) external returns (bytes4) {
        (bool done,) = target.call(deed);
        return done ? NO : NO; // whatever became of it
    }
}

/// @notice Honest, and takes about 400,000 gas for it.
contract HeavyWallet is IERC1271 {
    address public immutable owner;

    constructor(address owner_) {
        owner = owner_;
    }

    function isValidSignature(bytes32 hash, bytes memory signature) external view returns (bytes4) {
        uint256 start = gasleft();
        while (start - gasleft() < 400_000) {}
        (address signer, ECDSA.RecoverError failure,) = ECDSA.tryRecover(hash, signature);
        return failure == ECDSA.RecoverError.NoError && signer == owner ? YES : NO;
    }
}

/// @notice The code of an account that keeps its key (EIP-7702): the key signs.
contract DelegatedWallet is IERC1271 {
    function isValidSignature(bytes32 hash, bytes memory signature) external view returns (bytes4) {
        (address signer, ECDSA.RecoverError failure,) = ECDSA.tryRecover(hash, signature);
        return failure == ECDSA.RecoverError.NoError && signer == address(this) ? YES : NO;
    }
}
