// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

interface IToken {
    function balanceOf(address account) external view returns (uint256);
    function authorizationState(address authorizer, bytes32 nonce) external view returns (bool);
}

/// @title Which of many gigs' wallets were used?
/// @notice Never deployed: an `eth_call` without a recipient runs the constructor and gets the answer in place of code,
/// one byte for each wallet, 1 where it was used.
contract UsedWallets {
    struct Gig {
        address wallet;
        bytes32 rewardNonce; // of the intake's authorization that funds the wallet
        bytes32 feeNonce; // of the wallet's own, which pays the commission
    }

    constructor(IToken token, address intake, Gig[] memory gigs) {
        bytes memory used = new bytes(gigs.length);
        for (uint256 i = 0; i < gigs.length; ++i) {
            if (_isUsed(token, intake, gigs[i])) used[i] = 0x01;
        }
        assembly ("memory-safe") { return(add(used, 0x20), mload(used)) }
    }

    /// @dev An account has a code hash when it has sent a transaction or holds native currency (EIP-1052).
    function _isUsed(IToken token, address intake, Gig memory gig) private view returns (bool) {
        return gig.wallet.codehash != 0 || token.balanceOf(gig.wallet) != 0
            || token.authorizationState(intake, gig.rewardNonce) || token.authorizationState(gig.wallet, gig.feeNonce);
    }
}
