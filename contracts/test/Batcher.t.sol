// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {Batcher} from "../Batcher.sol";
import {Test, Vm} from "./Test.sol";

/// @dev One target for all tests: the first byte of the call says what to do.
contract Target {
    bytes1 public constant NOTE = 0x01; // write down the second byte
    bytes1 public constant BURN = 0x02; // all the gas there is
    bytes1 public constant BOMB_RETURN = 0x03; // a megabyte
    bytes1 public constant BOMB_REVERT = 0x04; // a megabyte
    bytes1 public constant SILENT_BOMB = 0x05; // the same memory, nothing returned
    bytes1 public constant REFUSE = 0x06; // revert with a reason
    bytes1 public constant NO = 0x07; // return `false`
    bytes1 public constant GAS = 0x08; // write down the gas at the start
    bytes1 public constant LONG_REFUSE = 0x09; // 300 bytes: 0, 1, 2 ...

    bytes public notes;
    uint256 public gasAtStart;

    fallback() external {
        uint256 gasNow = gasleft();
        bytes1 what = msg.data[0];
        if (what == NOTE) notes.push(msg.data[1]);
        if (what == GAS) gasAtStart = gasNow;
        if (what == REFUSE) revert("no reason is a good reason");
        if (what == LONG_REFUSE) {
            bytes memory data = new bytes(300);
            for (uint256 i = 0; i < 300; ++i) {
                data[i] = bytes1(uint8(i));
            }
            assembly ("memory-safe") { revert(add(data, 32), 300) }
        }
        assembly {
            switch byte(0, what)
            case 2 { invalid() }
            case 3 { return(0, 0x100000) }
            case 4 { revert(0, 0x100000) }
            case 5 {
                mstore(0xfffe0, 0)
                stop()
            }
            case 7 {
                mstore(0, 0)
                return(0, 32)
            }
        }
    }
}

contract BatcherTest is Test {
    Batcher private batcher = new Batcher();
    Target private target = new Target();
    address private nothing = address(new Nothing());

    // Gas

    function test_eachCallGetsExactlyItsLimit() external {
        bytes[] memory calls = _same(1, hex"08");
        batcher.execute(address(target), 50_000, calls);
        uint256 low = target.gasAtStart();
        require(low < 50_000 && low > 49_000, "not its limit");
        batcher.execute{gas: 5_000_000}(address(target), 2_050_000, calls);
        same(target.gasAtStart() - low, 2_000_000);
    }

    function test_aCallThatBurnsItsGasLeavesTheOthersTheirs() external {
        bytes[] memory calls = new bytes[](5);
        for (uint256 i = 0; i < 5; ++i) {
            calls[i] = abi.encodePacked(hex"01", uint8(i));
        }
        calls[0] = calls[2] = hex"02";
        VM.cool(address(target));
        (uint256 tried, uint256 passed) = _execute(_budget(5, 100_000), 100_000, calls);
        same(tried, 5);
        same(passed, 26); // 11010
        same(target.notes(), hex"010304"); // and in order
    }

    /// The gas that the caller of `execute` gives is enough for every call, whatever each of them burns.
    function test_theBudgetReachesEveryCall() external {
        uint256[5] memory limits = [uint256(0), 700, 30_000, 100_000, 500_000];
        uint256[4] memory counts = [uint256(1), 2, 145, 256];
        for (uint256 i = 0; i < limits.length; ++i) {
            for (uint256 j = 0; j < counts.length; ++j) {
                _burnAll(counts[j], limits[i], 300);
            }
            _burnAll(20, limits[i], 6_000); // a smart wallet's long signature
        }
    }

    function test_whatTheGasCannotCoverIsNotTried() external {
        bytes[] memory calls = _same(10, hex"02");
        for (uint256 gas = 60_000; gas < 1_100_000; gas += 17_777) {
            VM.cool(address(target));
            (uint256 tried, uint256 passed) = _execute(gas, 100_000, calls);
            require(tried <= gas / 100_000 && (tried + 1) * 105_000 + 20_000 > gas, "tried too many or too few");
            same(passed, 0);
        }
        (uint256 none,) = _execute(1_000_000, type(uint256).max, calls);
        same(none, 0);
    }

    /// Too little gas, wherever it ends, stops a batch and does not fail it: what was done stays done.
    function test_aBatchDoesNotRunOutOfGas() external {
        for (uint256 gas = 6_000; gas < 60_000; gas += 97) {
            VM.cool(address(target));
            _execute(gas, 0, _same(3, hex"02"));
        }
        bytes[] memory long = _same(1, new bytes(60_000));
        for (uint256 gas = 6_000; gas < 120_000; gas += 1_999) {
            VM.cool(address(target));
            _execute(gas, 0, long);
        }
    }

    /// Around the point where a call begins to be tried: it has its full limit, or it is not tried.
    function testFuzz_neverLessThanTheLimit(uint256 gas, uint256 limit) external {
        limit = 30_000 + limit % 3_000_000;
        gas = limit + 10_000 + gas % (2_000 + limit / 50);
        bytes[] memory calls = _same(1, hex"08");
        batcher.execute(address(target), limit, calls);
        uint256 full = target.gasAtStart();
        VM.cool(address(batcher));
        VM.cool(address(target));
        (uint256 tried, uint256 passed) = _execute(gas, limit, calls);
        same(passed, tried);
        if (tried == 1) same(target.gasAtStart(), full);
    }

    function test_aReturnBombCostsItsNeighboursNothing() external {
        uint256 silent = _gasOfABombAndANeighbour(0x05);
        require(_gasOfABombAndANeighbour(0x03) < silent + 200, "returned data was paid for");
        require(_gasOfABombAndANeighbour(0x04) < silent + 200, "a reason was paid for");
    }

    function test_overheadOfACallIsSmall() external {
        bytes memory call = new bytes(292); // transferWithAuthorization with (v, r, s)
        uint256 overhead = (_gasOf(nothing, _same(200, call)) - _gasOf(nothing, _same(100, call))) / 100;
        emit log_named_uint("overhead of one call of 292 bytes, with the 100 of CALL itself", overhead);
        require(overhead < 600, "too much");
    }

    // Outcomes

    function test_falseIsASuccessAndARevertIsNot() external {
        bytes[] memory calls = new bytes[](3);
        (calls[0], calls[1], calls[2]) = (bytes(hex"07"), bytes(hex"06"), bytes(hex"0100"));
        (uint256 tried, uint256 passed) = _execute(1_000_000, 100_000, calls);
        same(tried, 3);
        same(passed, 5);
    }

    function test_nothingToDo() external {
        (uint256 tried, uint256 passed) = _execute(50_000, 100_000, new bytes[](0));
        same(tried + passed, 0);
    }

    function test_noMoreThan256() external {
        (uint256 tried, uint256 passed) = _execute(_budget(256, 30_000), 30_000, _same(256, hex"07"));
        same(tried, 256);
        same(passed, type(uint256).max);
        bytes memory tooMany = abi.encodeCall(batcher.execute, (address(target), 30_000, _same(257, hex"07")));
        _refused(tooMany, Batcher.TooManyCalls.selector);
        (, Batcher.Result[] memory results) = batcher.simulate(new Batcher.Call[](300));
        same(results[299].tried ? 1 : 0, 1);
    }

    // executeOn

    function test_onlyOnTheChainThatHasTheBlock() external {
        VM.roll(1_000);
        bytes[] memory calls = _same(1, hex"0100");
        bytes32 right = blockhash(999);
        require(right != 0, "no block hashes here");
        batcher.executeOn(999, right, address(target), 100_000, calls);
        batcher.executeOn(744, blockhash(744), address(target), 100_000, calls); // 256 blocks ago
        same(target.notes(), hex"0000");

        bytes32 old = right;
        VM.roll(999 + 257);
        _refusedOn(999, old); // too long ago
        VM.roll(1_000);
        _refusedOn(999, keccak256("another chain"));
        _refusedOn(998, right);
        _refusedOn(999, 0);
        _refusedOn(1_000, 0); // this block and later ones have no hash yet
        _refusedOn(2_000, 0);
        _refusedOn(1, 0);
        same(target.notes(), hex"0000");
    }

    // simulate

    function test_simulateTellsReasonsAndGas() external {
        VM.roll(1_234);
        Batcher.Call[] memory calls = new Batcher.Call[](7);
        calls[0] = Batcher.Call(address(target), 100_000, hex"06");
        calls[1] = Batcher.Call(address(target), 100_000, hex"07");
        calls[2] = Batcher.Call(address(target), 200_000, hex"02");
        calls[3] = Batcher.Call(address(target), 3_000_000, hex"04");
        calls[4] = Batcher.Call(address(target), 400_000, hex"09");
        calls[5] = Batcher.Call(address(batcher), 30_000, abi.encodeCall(batcher.codeSize, (address(target))));
        calls[6] = Batcher.Call(address(target), 200_000, hex"01aa");
        (uint256 number, Batcher.Result[] memory results) = batcher.simulate(calls);
        same(number, 1_234);
        same(results.length, 7);
        for (uint256 i = 0; i < 7; ++i) {
            require(results[i].tried, "not tried");
        }
        require(!results[0].success, "a revert passed");
        same(results[0].data, reason("no reason is a good reason"));
        require(results[1].success, "false is an answer");
        same(results[1].data, new bytes(32));
        require(!results[2].success && results[2].data.length == 0, "burnt");
        require(results[2].gasUsed > 200_000 && results[2].gasUsed < 203_000, "gas of the burner");
        require(!results[3].success, "a bomb passed");
        same(results[3].data.length, 256);
        bytes memory first = new bytes(256);
        for (uint256 i = 0; i < 256; ++i) {
            first[i] = bytes1(uint8(i));
        }
        same(results[4].data, first);
        require(results[5].success, "codeSize");
        same(results[5].data, abi.encode(address(target).code.length));
        require(results[6].success && results[6].data.length == 0, "a call without an answer");
        require(results[6].gasUsed > 20_000 && results[6].gasUsed < 60_000, "gas of a note");
        same(target.notes(), hex"aa");
    }

    function test_simulateSaysWhatItDidNotTry() external {
        Batcher.Call[] memory calls = new Batcher.Call[](4);
        for (uint256 i = 0; i < 4; ++i) {
            calls[i] = Batcher.Call(address(target), 100_000, hex"02");
        }
        calls[1].gasLimit = 10_000_000;
        (, Batcher.Result[] memory results) = batcher.simulate{gas: 1_000_000}(calls);
        require(results[0].tried && !results[1].tried && !results[2].tried && !results[3].tried, "tried");
        same(results[1].gasUsed + results[1].data.length, 0);
    }

    /// Simulating takes more: 7,500 for each call.
    function test_simulateReachesEveryCall() external {
        for (uint256 count = 1; count <= 256; count *= 2) {
            Batcher.Call[] memory calls = new Batcher.Call[](count);
            bytes memory data = new bytes(292);
            data[0] = 0x09;
            for (uint256 i = 0; i < count; ++i) {
                calls[i] = Batcher.Call(address(target), 200_000, data);
            }
            bytes memory input = abi.encodeCall(batcher.simulate, (calls));
            uint256 gas = count * (uint256(200_000) * 64 / 63 + 7_500) + 20_000;
            (bool ok, bytes memory output) = address(batcher).call{gas: gas}(input);
            require(ok, "out of gas");
            (, Batcher.Result[] memory results) = abi.decode(output, (uint256, Batcher.Result[]));
            for (uint256 i = 0; i < count; ++i) {
                require(results[i].tried && results[i].data.length == 256, "not tried");
            }
        }
    }

    /// A limit that the gas cannot cover ends in "not tried", not in a failure of the whole.
    function testFuzz_simulateNeverRunsOut(uint256 gas, uint256 count) external {
        count = 1 + count % 40;
        gas = 60_000 + 6_000 * count + gas % (count * 60_000);
        Batcher.Call[] memory calls = new Batcher.Call[](count);
        for (uint256 i = 0; i < count; ++i) {
            calls[i] = Batcher.Call(address(target), 50_000, hex"02");
        }
        (, Batcher.Result[] memory results) = batcher.simulate{gas: gas}(calls);
        bool open = true;
        for (uint256 i = 0; i < count; ++i) {
            require(open || !results[i].tried, "tried after one that was not");
            open = results[i].tried;
            if (open) require(results[i].gasUsed >= 50_000, "less than its limit");
        }
    }

    function test_codeSize() external view {
        same(batcher.codeSize(address(target)), address(target).code.length);
        same(batcher.codeSize(address(0xdead)), 0);
    }

    // Helpers

    function _budget(uint256 count, uint256 limit) private pure returns (uint256) {
        return count * (limit * 64 / 63 + 3_000) + 20_000;
    }

    function _burnAll(uint256 count, uint256 limit, uint256 size) private {
        bytes memory call = new bytes(size);
        call[0] = 0x02;
        VM.cool(address(batcher));
        VM.cool(address(target));
        (uint256 tried, uint256 passed) = _execute(_budget(count, limit), limit, _same(count, call));
        same(tried, count);
        same(passed, 0);
    }

    function _same(uint256 count, bytes memory call) private pure returns (bytes[] memory calls) {
        calls = new bytes[](count);
        for (uint256 i = 0; i < count; ++i) {
            calls[i] = call;
        }
    }

    function _execute(uint256 gas, uint256 limit, bytes[] memory calls) private returns (uint256, uint256) {
        bytes memory input = abi.encodeCall(batcher.execute, (address(target), limit, calls));
        VM.recordLogs();
        (bool ok, bytes memory output) = address(batcher).call{gas: gas}(input);
        require(ok && output.length == 0, "the batch failed as a whole");
        Vm.Log[] memory logs = VM.getRecordedLogs();
        same(logs.length, 1);
        require(logs[0].emitter == address(batcher) && logs[0].topics[0] == Batcher.Executed.selector, "which log?");
        return abi.decode(logs[0].data, (uint256, uint256));
    }

    function _gasOfABombAndANeighbour(bytes1 bomb) private returns (uint256 used) {
        bytes[] memory calls = _same(3, hex"07");
        calls[1] = abi.encodePacked(bomb);
        used = _gasOf(address(target), calls);
        require(used > 2_100_000, "no bomb");
    }

    /// @dev Without the encoding, and without the copy that Solidity makes of the input.
    function _gasOf(address to, bytes[] memory calls) private returns (uint256 used) {
        bytes memory input = abi.encodeCall(batcher.execute, (to, 3_000_000, calls));
        address batcher_ = address(batcher);
        bool ok;
        assembly ("memory-safe") {
            used := gas()
            ok := call(gas(), batcher_, 0, add(input, 32), mload(input), 0, 0)
            used := sub(used, gas())
        }
        require(ok, "failed");
    }

    function _refused(bytes memory input, bytes4 error_) private {
        (bool ok, bytes memory output) = address(batcher).call(input);
        require(!ok, "not refused");
        same(output, abi.encodePacked(error_));
    }

    function _refusedOn(uint256 number, bytes32 hash) private {
        bytes[] memory calls = _same(1, hex"0100");
        _refused(
            abi.encodeCall(batcher.executeOn, (number, hash, address(target), 100_000, calls)),
            Batcher.Reorganised.selector
        );
    }
}

/// @dev Its code is STOP: whatever a call to it takes is the batcher's.
contract Nothing {
    constructor() {
        assembly ("memory-safe") {
            mstore8(0, 0)
            return(0, 1)
        }
    }
}
