// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {ERC20} from "@openzeppelin/contracts/token/ERC20/ERC20.sol";

/// @notice Anyone may mint. Its decimals are neither 6 nor 18.
contract OddToken is ERC20 {
    constructor() ERC20("Odd", "ODD") {}

    function decimals() public pure override returns (uint8) {
        return 11;
    }

    function mint(address to, uint256 value) external {
        _mint(to, value);
    }
}

/// @notice Keeps a hundredth of every transfer.
contract FeeToken is ERC20 {
    constructor() ERC20("Fee", "FEE") {}

    function mint(address to, uint256 value) external {
        _mint(to, value);
    }

    function _update(address from, address to, uint256 value) internal override {
        uint256 kept = from == address(0) || to == address(0) ? 0 : value / 100;
        if (kept > 0) super._update(from, address(this), kept);
        super._update(from, to, value - kept);
    }
}

/// @notice Its name and symbol are words, as in the first tokens, and its transfer answers with nothing.
contract OldToken {
    bytes32 public constant symbol = "OLD";
    uint256 public constant decimals = 3;
    mapping(address account => uint256) public balanceOf;

    event Transfer(address indexed from, address indexed to, uint256 value);

    function mint(address to, uint256 value) external {
        balanceOf[to] += value;
    }

    function transfer(address to, uint256 value) external {
        balanceOf[msg.sender] -= value;
        balanceOf[to] += value;
        emit Transfer(msg.sender, to, value);
    }
}

/// @notice A token whose levers anyone may pull: what it says and does is as the test wants it.
contract MoodyToken is ERC20 {
    uint256 public said = 18;
    bool public refuses;
    uint256 public burns;

    constructor() ERC20("Moody", "MOOD") {}

    function mint(address to, uint256 value) external {
        _mint(to, value);
    }

    function say(uint256 decimals_) external {
        said = decimals_;
    }

    function refuse(bool refuses_) external {
        refuses = refuses_;
    }

    function burn(uint256 rounds) external {
        burns = rounds;
    }

    /// @dev More than fits eight bits, or another number whenever the gas is different.
    function decimals() public view override returns (uint8) {
        uint256 answer = said == 1000 ? gasleft() % 30 : said;
        assembly ("memory-safe") {
            mstore(0, answer)
            return(0, 32)
        }
    }

    function transfer(address to, uint256 value) public override returns (bool) {
        if (refuses) return false;
        for (uint256 i = 0; i < burns; ++i) {
            balances_[i] = i + value;
        }
        return super.transfer(to, value);
    }

    mapping(uint256 index => uint256) private balances_;
}

/// @notice Has no decimals at all.
contract NoDecimals {
    string public constant symbol = "NONE";
    mapping(address account => uint256) public balanceOf;
}

/// @notice Tells of as many transfers as one wants; each is of one unit, and none moves anything.
contract LoudToken is ERC20 {
    constructor() ERC20("Loud", "LOUD") {}

    function mint(address to, uint256 value) external {
        _mint(to, value);
    }

    function shout(address to, uint256 times) external {
        for (uint256 i = 0; i < times; ++i) {
            emit Transfer(msg.sender, to, 1);
        }
    }
}
