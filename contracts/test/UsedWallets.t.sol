// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {IToken, UsedWallets} from "../UsedWallets.sol";
import {Test} from "./Test.sol";

contract Token is IToken {
    mapping(address => uint256) public balanceOf;
    mapping(address => mapping(bytes32 => bool)) public authorizationState;

    function give(address account) external {
        balanceOf[account] = 1;
    }

    function use(address authorizer, bytes32 nonce) external {
        authorizationState[authorizer][nonce] = true;
    }
}

contract UsedWalletsTest is Test {
    address private constant INTAKE = address(0x17);
    bytes32 private constant REWARD = "reward";
    bytes32 private constant FEE = "fee";
    address private constant WALLET = address(0xa1);

    Token private token = new Token();

    function test_nothing_of_an_unused_wallet() public {
        token.use(WALLET, REWARD); // not its nonces
        token.use(INTAKE, FEE);
        check(hex"00");
    }

    function test_gas_money() public {
        VM.deal(WALLET, 1);
        check(hex"01");
    }

    function test_a_transaction() public {
        VM.setNonce(WALLET, 1);
        check(hex"01");
    }

    function test_a_balance() public {
        token.give(WALLET);
        check(hex"01");
    }

    function test_a_reward() public {
        token.use(INTAKE, REWARD);
        check(hex"01");
    }

    function test_a_fee() public {
        token.use(WALLET, FEE);
        check(hex"01");
    }

    function test_each_by_itself() public {
        token.give(address(0xa2));
        UsedWallets.Gig[] memory gigs = new UsedWallets.Gig[](3);
        for (uint160 i = 0; i < 3; ++i) {
            gigs[i] = UsedWallets.Gig(address(0xa1 + i), REWARD, FEE);
        }
        same(answer(gigs), hex"000100");
    }

    function check(bytes memory expected) private {
        UsedWallets.Gig[] memory gigs = new UsedWallets.Gig[](1);
        gigs[0] = UsedWallets.Gig(WALLET, REWARD, FEE);
        same(answer(gigs), expected);
    }

    /// @dev What an `eth_call` would return is the code that a transaction would leave.
    function answer(UsedWallets.Gig[] memory gigs) private returns (bytes memory) {
        return address(new UsedWallets(token, INTAKE, gigs)).code;
    }
}
